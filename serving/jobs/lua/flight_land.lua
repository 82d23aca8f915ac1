-- End a flight with the answer that its leader got: store it, and hand it to the followers.
-- KEYS: 1 leases  2 flight  3 cache  4 cached
-- ARGV: 1 id of the leader  2 the answer, JSON  3 what travels beside it, JSON  4 seconds for which Redis keeps the
--       followers' answers  5 how the keys of what travels beside them begin; '': the messages alone have it
--       6 key in the cache; '': the answer is not stored  7 what is stored  8 for how many seconds
--       9 most bytes of all that is stored  10 bytes that an entry takes beside its own
-- Returns a state:
--   1  STORED
--   0  NOT_STORED: nor was it asked to
--  -1  OUT_OF_MEMORY: Redis has no room for what is stored, or the answer has more bytes than all may have
local STORED, NOT_STORED, OUT_OF_MEMORY = 1, 0, -1
local MOST_DROPPED = 10000  -- 50 ms, and Redis answers nobody meanwhile; where more have to go, all go
local clock = now()

local function drop(key)
  local entry = redis.call('HGET', KEYS[3], key)
  redis.call('HDEL', KEYS[3], key)
  redis.call('ZREM', KEYS[4], key)
  return entry and #entry + ARGV[10] or 0
end

-- Entries whose time is over go first, a few with each store, then the oldest ones.
local function make_room(bytes)
  for _, key in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', clock, 'LIMIT', 0, 32)) do
    bytes = bytes - drop(key)
  end
  local dropped = 0
  while bytes > tonumber(ARGV[9]) do
    local oldest = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', '+inf', 'LIMIT', 0, 1)[1]
    if not oldest or dropped == MOST_DROPPED then  -- without one, what is counted is not what is there: begin anew
      redis.call('UNLINK', KEYS[3], KEYS[4])
      return nil
    end
    bytes, dropped = bytes - drop(oldest), dropped + 1
  end
  return bytes
end

local function live(key)  -- until the last entry's time is over
  if redis.call('PTTL', key) < 1000 * ARGV[8] then redis.call('EXPIRE', key, ARGV[8]) end
end

local function store(key)
  local entry = string.format('%.3f ', clock + ARGV[8]) .. ARGV[7]
  local size = #entry + ARGV[10]
  if size > tonumber(ARGV[9]) then return OUT_OF_MEMORY end
  local before = redis.call('HGET', KEYS[3], key)
  local has_index = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', '+inf', 'LIMIT', 0, 1)[1]
  -- The first write of this script: a Redis that is out of memory refuses it, and nothing is stored.
  local written = redis.pcall('HSET', KEYS[3], key, entry)
  if type(written) == 'table' and written.err then return OUT_OF_MEMORY end
  if not has_index then  -- nobody would take out what stands there without one
    redis.call('UNLINK', KEYS[3])
    redis.call('HSET', KEYS[3], key, entry)
    before = nil
  end
  redis.call('ZADD', KEYS[4], clock + ARGV[8], key)
  local bytes = tonumber(redis.call('HGET', KEYS[3], 'bytes') or '0') + size - (before and #before + ARGV[10] or 0)
  bytes = make_room(bytes)
  if bytes then
    redis.call('HSET', KEYS[3], 'bytes', bytes)
    live(KEYS[3])
    live(KEYS[4])
  end
  return STORED
end

local state = ARGV[6] ~= '' and store(ARGV[6]) or NOT_STORED
allow_out_of_memory(KEYS[1])
local leads = redis.call('HGET', KEYS[2], 'leader') == ARGV[1]
if not leads and string.sub(ARGV[2], 1, 8) == '{"error"' then return state end  -- another leads by now, with its own job

local text, messages = cjson.encode(ARGV[2]), {}
for _, id in ipairs(followers(KEYS[2])) do
  local channel = string.match(redis.call('HGET', KEYS[2], id), ' (%S+)$')
  redis.call('SET', id, ARGV[2], 'EX', ARGV[4])
  if ARGV[5] ~= '' then redis.call('SET', ARGV[5] .. id, ARGV[3], 'EX', ARGV[4]) end
  messages[channel] = (messages[channel] or '{"about":' .. ARGV[3]) .. ',"' .. id .. '":' .. text
end
for channel, message in pairs(messages) do redis.call('PUBLISH', channel, message .. '}') end
redis.call('UNLINK', KEYS[2])
return state
