-- Let a worker keep the jobs that plain LMOVEs have just moved to its processing list in the same transaction, or put
-- them back. A worker with empty hands proves by this that it is alive.
-- KEYS: 1 queue  2 processing list  3 workers  4 attempts  5 emptied  6 settled
-- ARGV: 1 worker  2 lease in seconds  3 how many jobs it had taken before
-- Returns {state, Redis's clock in seconds, as text, jobs that wait still}; the state is
--    0  it keeps them
--   -2  the lease is lost, and they went back
--   -3  some job came back lately, and these went back: ask with take.lua, which looks at each of them
local clock = now()
local stamp = string.format('%.6f', clock)
local settled = redis.call('HGET', KEYS[6], ARGV[1])  -- nothing: what it held went to others
local held = settled and ARGV[3] - settled or 0
local moved = redis.call('LLEN', KEYS[2]) - held

local state = 0
if lease_end(KEYS[3], ARGV[1]) <= clock then
  state = -2
elseif moved < 0 then  -- Redis has forgotten what it was told lately: what this worker holds must go to others
  redis.call('ZADD', KEYS[3], clock, ARGV[1])
  state = -2
elseif redis.call('HLEN', KEYS[4]) > 0 then
  state = -3
end
if state < 0 then
  for _ = 1, moved do redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') end
  lost(KEYS[2], KEYS[3], ARGV[1], clock)  -- makes the name known again if there is anything left
  return {state, stamp, 0}
end

if held == 0 then redis.call('ZADD', KEYS[3], clock + ARGV[2], ARGV[1]) end
local waiting = redis.call('LLEN', KEYS[1])
-- Who reads this knows that the model servers kept up with what came.
if moved > 0 and waiting == 0 then redis.call('SET', KEYS[5], stamp) end
return {0, stamp, waiting}
