-- Take a job for which nobody waits any more out of the queue, unless a model server has it already.
-- KEYS: 1 waiting jobs  2 attempts
-- ARGV: 1 job
-- Returns 1; or 0 when the job waits no more: a model server took it, or it has ended
local removed = redis.call('LREM', KEYS[1], 1, ARGV[1])
if removed == 1 then redis.call('HDEL', KEYS[2], job_id(ARGV[1])) end
return removed
