-- Move waiting jobs to a worker's processing list. A worker with empty hands proves by this that it is alive.
-- KEYS: 1 queue  2 processing list  3 workers  4 attempts  5 emptied
-- ARGV: 1 worker  2 lease in seconds  3 most jobs to take  4 jobs just moved by BLMOVE: 0 or 1
-- Returns {state, Redis's clock in seconds, as text, job, …}, without the job that BLMOVE moved; the state is
--   0  these jobs run together
--   n  this one job came back n times: it runs alone
--  -1  the next job runs alone, or the one in hand does: come back with empty hands
--  -2  the lease is lost: nothing was taken, and what BLMOVE moved went back
allow_out_of_memory(KEYS[3])
local clock = now()
local stamp = string.format('%.6f', clock)
local moved = tonumber(ARGV[4])

if lost(KEYS[2], KEYS[3], ARGV[1], clock) then
  if moved == 1 then redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') end
  return {-2, stamp}
end

local held = redis.call('LLEN', KEYS[2]) - moved
if held == 0 then redis.call('ZADD', KEYS[3], clock + ARGV[2], ARGV[1]) end

local none_came_back = redis.call('HLEN', KEYS[4]) == 0
local function attempts(text)
  if none_came_back or not text then return 0 end
  return tonumber(redis.call('HGET', KEYS[4], job_id(text)) or '0')
end

local taken = {}
if not none_came_back then
  local first = moved == 1 and redis.call('LINDEX', KEYS[2], -1) or redis.call('LINDEX', KEYS[1], 0)
  local came_back = attempts(first)
  if held > 0 and (came_back > 0 or attempts(redis.call('LINDEX', KEYS[2], 0)) > 0) then
    if moved == 1 then redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') end
    return {-1, stamp}
  end
  if came_back > 0 then
    if moved == 0 then taken[1] = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT') end
    return {came_back, stamp, unpack(taken)}
  end
end

while #taken + moved < tonumber(ARGV[3]) do
  if not none_came_back and attempts(redis.call('LINDEX', KEYS[1], 0)) > 0 then break end
  local job = redis.call('LMOVE', KEYS[1], KEYS[2], 'LEFT', 'RIGHT')
  if not job then break end
  taken[#taken + 1] = job
end
-- Who reads this knows that the model servers kept up with what came.
if #taken + moved > 0 and redis.call('LLEN', KEYS[1]) == 0 then redis.call('SET', KEYS[5], stamp) end
return {0, stamp, unpack(taken)}
