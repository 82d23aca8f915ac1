-- Put a job at the end of the queue, unless the queue is full.
-- KEYS: 1 queue  2 served
-- ARGV: 1 job  2 most jobs that may wait
-- Returns {accepted: 1 or 0, jobs that wait, jobs served so far, Redis's clock in seconds, as text}
local waiting = redis.call('LLEN', KEYS[1])
local accepted = 0
if waiting < tonumber(ARGV[2]) then
  waiting = redis.call('RPUSH', KEYS[1], ARGV[1])
  accepted = 1
end
return {accepted, waiting, tonumber(redis.call('GET', KEYS[2]) or '0'), string.format('%.6f', now())}
