-- Put a job at the end of the queue, unless the queue is full.
-- KEYS: 1 queue  2 served  3 emptied
-- ARGV: 1 job  2 most jobs that may wait
-- Returns {accepted: 1 or 0, jobs that waited before, jobs served so far, and in seconds, as text: when the queue was
-- last emptied, Redis's clock}
local waiting = redis.call('LLEN', KEYS[1])
local accepted = 0
if waiting < tonumber(ARGV[2]) then
  redis.call('RPUSH', KEYS[1], ARGV[1])
  accepted = 1
end
return {accepted, waiting, tonumber(redis.call('GET', KEYS[2]) or '0'), redis.call('GET', KEYS[3]) or '0',
  string.format('%.6f', now())}
