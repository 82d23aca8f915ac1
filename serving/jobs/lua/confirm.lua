-- Let a model server keep the jobs that plain LMOVEs of the same transaction have just moved to its processing list, or
-- put the jobs back. A model server with empty hands renews its lease by this.
-- KEYS: 1 waiting jobs  2 processing list  3 leases  4 attempts  5 last_empty_at  6 settled_by_server
--       and of the other lane: 7 waiting jobs  8 processing list  9 paused  10 quiet
-- ARGV: 1 model server  2 lease in seconds  3 how many jobs it had taken before
-- Returns {state, Redis's clock in unix seconds, as text, jobs that still wait, those of the other lane};
-- the state is
--    0  KEPT: the model server keeps the jobs
--   -2  LEASE_LOST: the jobs went back
--   -3  ONE_BY_ONE: some job came back and has not ended, so that these went back: ask take.lua, which looks at each
--   -4  PAUSED: an operator has told the model server to take nothing, so that these went back
local KEPT, LEASE_LOST, ONE_BY_ONE, PAUSED = 0, -2, -3, -4
local clock = now()
local stamp = string.format('%.6f', clock)
local settled_by_server = redis.call('HGET', KEYS[6], ARGV[1])  -- none: the jobs it held went to others
local held = settled_by_server and ARGV[3] - settled_by_server or 0
local moved = redis.call('LLEN', KEYS[2]) - held

local state = KEPT
if lease_end(KEYS[3], ARGV[1]) <= clock then
  state = LEASE_LOST
elseif moved < 0 then  -- Redis forgot its last writes: this model server's jobs must go to others
  redis.call('ZADD', KEYS[3], clock, ARGV[1])
  state = LEASE_LOST
elseif is_paused(KEYS[9], KEYS[10], ARGV[1]) then
  state = PAUSED
elseif redis.call('HLEN', KEYS[4]) > 0 then
  state = ONE_BY_ONE
end
if state ~= KEPT then
  for _ = 1, moved do redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') end
end
if state == LEASE_LOST then
  lost(KEYS[3], ARGV[1], clock, KEYS[2], KEYS[8])  -- makes the name known again if its list still has jobs
end
local hands_are_empty = held == 0 and redis.call('LLEN', KEYS[8]) == 0
if hands_are_empty and (state == KEPT or state == PAUSED) then redis.call('ZADD', KEYS[3], clock + ARGV[2], ARGV[1]) end
if state ~= KEPT then return {state, stamp, 0, 0} end

local waiting = redis.call('LLEN', KEYS[1])
-- Whoever reads this key knows that the model servers kept up with the jobs that came.
if moved > 0 and waiting == 0 then redis.call('SET', KEYS[5], stamp) end
return {KEPT, stamp, waiting, redis.call('LLEN', KEYS[7])}
