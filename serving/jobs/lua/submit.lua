-- Accept jobs that the same transaction has just put at the end of the queue. When the queue has no room for all of
-- them, take the last ones out again.
-- KEYS: 1 waiting jobs  2 settled_total  3 last_empty_at
-- ARGV: 1 how many jobs were put there  2 most jobs that may wait
-- Returns {how many are accepted, jobs that waited before, jobs settled so far, and in seconds, as text: when the queue
-- was last empty, Redis's clock}
local count = tonumber(ARGV[1])
local waiting = redis.call('LLEN', KEYS[1]) - count
local accepted = math.max(0, math.min(count, ARGV[2] - waiting))
if accepted < count then
  redis.call('LTRIM', KEYS[1], 0, accepted - count - 1)
end
return {accepted, waiting, tonumber(redis.call('GET', KEYS[2]) or '0'), redis.call('GET', KEYS[3]) or '0',
  string.format('%.6f', now())}
