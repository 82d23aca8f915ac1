-- Accept the asynchronous job that the same transaction has just put at the end of the lane, or take it out again: the
-- lane is full, the queue drains, the job is there already because its command was sent twice, or an earlier request
-- with the same Idempotency-Key has made a job.
-- KEYS: 1 lane  2 draining  3 the job's hash  4 the Idempotency-Key's, unless there is none
-- ARGV: 1 job id  2 most jobs that may wait  3 deadline  4 until when the job is known, both in unix seconds
--       5 fingerprint of the request; '' without an Idempotency-Key
-- Returns {state, id of the job that stands for the request}; the state is
--    0  ACCEPTED
--   -1  FULL
--   -2  KEY_REUSED: the Idempotency-Key came with another request before
--   -3  DRAINING
local ACCEPTED, FULL, KEY_REUSED, DRAINING = 0, -1, -2, -3
local function take_back(state, id)
  redis.call('LTRIM', KEYS[1], 0, -2)
  return {state, id}
end
if redis.call('HGET', KEYS[3], 'status') then return take_back(ACCEPTED, ARGV[1]) end
local kept = KEYS[4] and redis.call('GET', KEYS[4])
if kept then
  local id, fingerprint = string.match(kept, '^(%S+) (%S+)$')
  return take_back(fingerprint == ARGV[5] and ACCEPTED or KEY_REUSED, id)
end
if redis.call('GET', KEYS[2]) then return take_back(DRAINING, ARGV[1]) end
if redis.call('LLEN', KEYS[1]) > tonumber(ARGV[2]) then return take_back(FULL, ARGV[1]) end

local clock = now()
local seconds = math.max(1, math.ceil(ARGV[4] - clock))
redis.call('HSET', KEYS[3], 'status', 'queued', 'submitted_at', string.format('%.6f', clock), 'deadline', ARGV[3],
  'expires_at', ARGV[4])
redis.call('EXPIRE', KEYS[3], seconds)
if KEYS[4] then redis.call('SET', KEYS[4], ARGV[1] .. ' ' .. ARGV[5], 'EX', seconds) end
return {ACCEPTED, ARGV[1]}
