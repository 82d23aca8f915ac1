-- Stands in front of those scripts of this folder that use set_status.

-- Give an asynchronous job a status, unless the job has ended: how a job ended is final, and so is a cancel.
-- Returns the status that the job has now, nil if it has no hash; and whether it ended, or not, only just now.
local ENDED = {succeeded = true, failed = true, canceled = true}
local function set_status(job, status)
  local before = redis.call('HGET', job, 'status')
  if not before then return nil, false end
  if ENDED[before] then return before, false end
  if redis.call('HGET', job, 'canceled') == '1' then status = 'canceled' end
  redis.call('HSET', job, 'status', status)
  return status, true
end
