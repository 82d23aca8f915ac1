-- For requests that have come together: find the stored answer of each, or have it take part in a flight.
-- KEYS: 1 leases  2 serves  3 cache  4 draining
-- ARGV: 1 what the web process knows of what is served, JSON (Served.identity)  2 names that decide no answer, JSON
--       3 how the keys of flights begin  4 channel of the web process  5 seconds of a leader's lease
--       6… for each request its key in the cache, its id and its deadline
-- Returns for each request the stored answer, or a state:
--   1  LEADS: it computes the answer, for others too
--   0  FOLLOWS: another request computes the answer
--  -1  ALONE: nothing is shared, because the model servers that live do not all serve this, or Redis is out of memory
--  -2  DRAINING: an operator has told the service to accept nothing new, be the answer stored or not
local ALONE, DRAINING = -1, -2
local clock = now()
local serves, decides_nothing = cjson.decode(ARGV[1]), cjson.decode(ARGV[2])

local function is_same(text)
  local is_json, other = pcall(cjson.decode, text or '')
  if not is_json or type(other) ~= 'table' then return false end
  for _, name in ipairs(decides_nothing) do other[name] = nil end
  for name, value in pairs(serves) do
    if other[name] ~= value then return false end
    other[name] = nil
  end
  return next(other) == nil
end

local function are_agreed()
  local servers = alive(KEYS[1], clock)
  for _, server in ipairs(servers) do
    if not is_same(redis.call('HGET', KEYS[2], server)) then return false end
  end
  return #servers > 0
end

local is_draining = redis.call('GET', KEYS[4])
local is_shared, told = are_agreed(), {}
for i = 6, #ARGV, 3 do
  local stored = is_shared and redis.call('HGET', KEYS[3], ARGV[i])
  local expires_at, answer = string.match(stored or '', '^(%S+) (.*)$')
  if is_draining then
    told[#told + 1] = DRAINING
  elseif expires_at and tonumber(expires_at) > clock then
    told[#told + 1] = answer
  elseif is_shared then
    told[#told + 1] = board(ARGV[3] .. ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[4], ARGV[5], clock)
  else
    told[#told + 1] = ALONE
  end
end
return told
