-- Tell how the service is doing, in one look.
-- KEYS: 1 queue  2 bulk  3 settled_total  4 leases  5 serves  6 answered_at  7 seconds
-- ARGV: 1 slots  2 how many seconds to tell of  3 how many bytes of a job may come before its image
-- Returns {Redis's clock in unix seconds, as text, jobs that wait, bulk jobs that wait, jobs settled so far, the beginning
-- of the job that waits longest or '', 1 if an answer came within a minute else 0, the counts of each second that has
-- any, the model servers that live: name, what it serves, JSON, or '', …}
local clock = now()
local seconds, servers = {}, {}
-- The last second that is over may still be told of.
for second = math.floor(clock) - ARGV[2] - 1, math.floor(clock) - 2 do
  local counts = redis.call('HGET', KEYS[7], second % ARGV[1])
  if counts then seconds[#seconds + 1] = counts end
end
for _, server in ipairs(alive(KEYS[4], clock)) do
  servers[#servers + 1] = server
  servers[#servers + 1] = redis.call('HGET', KEYS[5], server) or ''
end
local oldest = redis.call('LINDEX', KEYS[1], 0) or ''
return {string.format('%.6f', clock), redis.call('LLEN', KEYS[1]), redis.call('LLEN', KEYS[2]),
  tonumber(redis.call('GET', KEYS[3]) or '0'), string.sub(oldest, 1, tonumber(ARGV[3])),
  redis.call('GET', KEYS[6]) and 1 or 0, seconds, servers}
