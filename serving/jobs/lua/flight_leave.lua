-- Take a request out of its flight. If it leads, and its job cannot serve the followers, wake the one of them that has
-- most time left, by a message, a JSON list of its id.
-- KEYS: 1 leases  2 flight
-- ARGV: 1 id of the request  2 1 if its job is over, else 0
-- Returns 1 if its job has to go on, because there are followers; else 0
allow_out_of_memory(KEYS[1])
local clock = now()
redis.call('HDEL', KEYS[2], ARGV[1])
if redis.call('HGET', KEYS[2], 'leader') ~= ARGV[1] then
  local has_followers = redis.call('HLEN', KEYS[2]) > 2
  local has_leader = tonumber(redis.call('HGET', KEYS[2], 'until') or '0') > clock
  if not (has_followers or has_leader) then redis.call('UNLINK', KEYS[2]) end
  return 0
end

local next_id, next_channel, latest = nil, nil, clock
for _, id in ipairs(followers(KEYS[2])) do
  local deadline, channel = string.match(redis.call('HGET', KEYS[2], id), '^(%S+) (%S+)$')
  if tonumber(deadline) > latest then next_id, next_channel, latest = id, channel, tonumber(deadline) end
end
if not next_id then
  redis.call('UNLINK', KEYS[2])
  return 0
end
if ARGV[2] == '0' then return 1 end
redis.call('HSET', KEYS[2], 'until', '0')
redis.call('PUBLISH', next_channel, '["' .. next_id .. '"]')
return 0
