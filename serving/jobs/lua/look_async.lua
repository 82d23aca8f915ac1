-- Tell of asynchronous jobs what stands in their hashes. A job whose time is over fails by this: for good, although a
-- model server may still meet it.
-- KEYS: 1 leases  2… the jobs' hashes
-- ARGV: 1 the error of a job whose time is over  2 seconds after the deadline that a job in a model server's hands has
-- Returns for each job its status (none: the job is not known), its expires_at and its error
local clock = now()
local function is_late(key, status)
  local deadline = tonumber(redis.call('HGET', key, 'deadline') or 'inf')
  return status == 'queued' and clock > deadline or status == 'processing' and clock > deadline + ARGV[2]
end

local told = {}
for i = 2, #KEYS do
  local status = redis.call('HGET', KEYS[i], 'status')
  if status and is_late(KEYS[i], status) then
    allow_out_of_memory(KEYS[1])
    status = 'failed'
    redis.call('HSET', KEYS[i], 'status', status, 'error', ARGV[1])
  end
  told[#told + 1] = status
  told[#told + 1] = redis.call('HGET', KEYS[i], 'expires_at')
  told[#told + 1] = redis.call('HGET', KEYS[i], 'error')
end
return told
