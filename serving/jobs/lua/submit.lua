-- Accept jobs that the same transaction has just put at the end of the queue. When the queue has no room for all of
-- them, take the last ones out again; while it drains, all of them.
-- KEYS: 1 waiting jobs  2 settled_total  3 last_empty_at  4 draining  5 paused
-- ARGV: 1 how many jobs were put there  2 most jobs that may wait
-- Returns {how many are accepted, Redis's clock in unix seconds, as text, jobs that waited before, jobs settled so far,
-- when the queue was last empty, likewise, 1 if it drains else 0, 1 if it is paused else 0}
local count = tonumber(ARGV[1])
local waiting = redis.call('LLEN', KEYS[1]) - count
local is_draining = redis.call('GET', KEYS[4])
local accepted = is_draining and 0 or math.max(0, math.min(count, ARGV[2] - waiting))
if accepted < count then
  redis.call('LTRIM', KEYS[1], 0, accepted - count - 1)
end
return {accepted, string.format('%.6f', now()), waiting, tonumber(redis.call('GET', KEYS[2]) or '0'),
  redis.call('GET', KEYS[3]) or '0', is_draining and 1 or 0, redis.call('GET', KEYS[5]) and 1 or 0}
