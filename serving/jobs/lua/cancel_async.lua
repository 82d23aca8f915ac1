-- Cancel an asynchronous job, unless it is over, and take it out of its lane if it still waits there. A model server
-- drops it where it meets it otherwise.
-- KEYS: 1 lane  2 the job's hash  3 attempts  4 leases
-- ARGV: 1 job id  2 how the hashes' keys begin
-- Returns 1; or 0 when there was nothing to cancel: the job is not known, or over
allow_out_of_memory(KEYS[4])
local status = redis.call('HGET', KEYS[2], 'status')
local waits = status == 'queued' and now() <= tonumber(redis.call('HGET', KEYS[2], 'deadline') or 'inf')
if not (waits or status == 'processing') then return 0 end
redis.call('HSET', KEYS[2], 'status', 'canceled', 'canceled', '1')

-- The script cannot tell Redis the job's text, which holds the image. It finds the text by halves, because jobs wait in
-- the order in which they were submitted. That misses one whose neighbour came back, or was requeued by an operator.
local submitted_at = tonumber(redis.call('HGET', KEYS[2], 'submitted_at'))
local low, high = 0, redis.call('LLEN', KEYS[1]) - 1
while low <= high do
  local middle = math.floor((low + high) / 2)
  local text = redis.call('LINDEX', KEYS[1], middle)
  local id = job_id(text)
  if id == ARGV[1] then
    redis.call('LREM', KEYS[1], 1, text)
    redis.call('HDEL', KEYS[3], id)
    return 1
  end
  if tonumber(redis.call('HGET', ARGV[2] .. id, 'submitted_at') or '0') < submitted_at then
    low = middle + 1
  else
    high = middle - 1
  end
end
return 1
