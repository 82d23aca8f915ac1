-- Let a model server keep the jobs that plain LMOVEs have just moved to its processing list in the same transaction, or
-- put them back. A model server with empty hands proves by this that it is alive.
-- KEYS: 1 queue  2 processing list  3 leases  4 attempts  5 last_empty_at  6 settled_by_server
-- ARGV: 1 model server  2 lease in seconds  3 how many jobs it had taken before
-- Returns {state, Redis's clock in seconds, as text, jobs that wait still}; the state is
--    0  KEPT: the model server keeps them
--   -2  LEASE_LOST: they went back
--   -3  ONE_BY_ONE: some job came back lately, and these went back: ask with take.lua, which looks at each of them
local KEPT, LEASE_LOST, ONE_BY_ONE = 0, -2, -3
local clock = now()
local stamp = string.format('%.6f', clock)
local settled_by_server = redis.call('HGET', KEYS[6], ARGV[1])  -- nothing: what it held went to others
local held = settled_by_server and ARGV[3] - settled_by_server or 0
local moved = redis.call('LLEN', KEYS[2]) - held

local state = KEPT
if lease_end(KEYS[3], ARGV[1]) <= clock then
  state = LEASE_LOST
elseif moved < 0 then  -- Redis has forgotten what it was told lately: what this model server holds must go to others
  redis.call('ZADD', KEYS[3], clock, ARGV[1])
  state = LEASE_LOST
elseif redis.call('HLEN', KEYS[4]) > 0 then
  state = ONE_BY_ONE
end
if state ~= KEPT then
  for _ = 1, moved do redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') end
  lost(KEYS[2], KEYS[3], ARGV[1], clock)  -- makes the name known again if there is anything left
  return {state, stamp, 0}
end

if held == 0 then redis.call('ZADD', KEYS[3], clock + ARGV[2], ARGV[1]) end
local waiting = redis.call('LLEN', KEYS[1])
-- Who reads this knows that the model servers kept up with what came.
if moved > 0 and waiting == 0 then redis.call('SET', KEYS[5], stamp) end
return {KEPT, stamp, waiting}
