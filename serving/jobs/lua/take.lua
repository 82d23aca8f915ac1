-- Move waiting jobs to a model server's processing list, one by one. This is for the time in which some job that came
-- back has not ended, or Redis is out of memory; otherwise plain LMOVEs and confirm.lua cost less. A model server with
-- empty hands renews its lease by this.
-- KEYS: 1 waiting jobs  2 processing list  3 leases  4 attempts  5 last_empty_at
--       and of the other lane: 6 waiting jobs  7 processing list  8 paused  9 quiet
-- ARGV: 1 model server  2 lease in seconds  3 most jobs to take
-- Returns {state, Redis's clock in unix seconds, as text, how many jobs came back and have not ended, jobs that wait in
-- the other lane, job, …}; the state is
--   0  TOGETHER: these jobs run together, none of them came back
--   n  this one job came back n times, and runs alone
--  -1  ALONE_LATER: the next job runs alone, or the one in hand does: come back with empty hands
--  -2  LEASE_LOST: nothing was taken
--  -4  PAUSED: an operator has told the model server to take nothing
local TOGETHER, ALONE_LATER, LEASE_LOST, PAUSED = 0, -1, -2, -4
allow_out_of_memory(KEYS[3])
local clock = now()
local stamp = string.format('%.6f', clock)
local came_back = redis.call('HLEN', KEYS[4])
if lost(KEYS[3], ARGV[1], clock, KEYS[2], KEYS[7]) then return {LEASE_LOST, stamp, came_back, 0} end

local of_other_lane = redis.call('LLEN', KEYS[6])
local holds = redis.call('LLEN', KEYS[2]) + redis.call('LLEN', KEYS[7]) > 0
if not holds then redis.call('ZADD', KEYS[3], clock + ARGV[2], ARGV[1]) end
if is_paused(KEYS[8], KEYS[9], ARGV[1]) then return {PAUSED, stamp, came_back, 0} end

local function attempts(text)
  if came_back == 0 or not text then return 0 end
  return tonumber(redis.call('HGET', KEYS[4], job_id(text)) or '0')
end

if came_back > 0 then
  local times = attempts(redis.call('LINDEX', KEYS[1], 0))
  local in_hand = attempts(redis.call('LINDEX', KEYS[2], 0)) + attempts(redis.call('LINDEX', KEYS[7], 0))
  if holds and times + in_hand > 0 then return {ALONE_LATER, stamp, came_back, of_other_lane} end
  if times > 0 then
    return {times, stamp, came_back, of_other_lane, redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')}
  end
end

local taken = {}
while #taken < tonumber(ARGV[3]) do
  if attempts(came_back > 0 and redis.call('LINDEX', KEYS[1], 0)) > 0 then break end
  local job = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
  if not job then break end
  taken[#taken + 1] = job
end
-- Whoever reads this key knows that the model servers kept up with the jobs that came.
if #taken > 0 and redis.call('LLEN', KEYS[1]) == 0 then redis.call('SET', KEYS[5], stamp) end
return {TOGETHER, stamp, came_back, of_other_lane, unpack(taken)}
