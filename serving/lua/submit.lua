-- Let a job into the queue, at whose end it has just been put in the same transaction; or take it out again: it is full.
-- KEYS: 1 queue  2 served  3 emptied
-- ARGV: 1 most jobs that may wait
-- Returns {accepted: 1 or 0, jobs that waited before, jobs served so far, and in seconds, as text: when the queue was
-- last emptied, Redis's clock}
local waiting = redis.call('LLEN', KEYS[1]) - 1
local accepted = 1
if waiting >= tonumber(ARGV[1]) then
  redis.call('LTRIM', KEYS[1], 0, -2)
  accepted = 0
end
return {accepted, waiting, tonumber(redis.call('GET', KEYS[2]) or '0'), redis.call('GET', KEYS[3]) or '0',
  string.format('%.6f', now())}
