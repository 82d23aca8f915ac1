-- Put the job of a dead letter at the end of its lane, with no attempt counted, and delete the letter. The script
-- finds the letter by its text, because its place in the list moves with each trim.
-- KEYS: 1 dead  2 waiting jobs  3 attempts  4 leases  5 the asynchronous job, if it is one
--       6 its answer, an error  7 what travels beside it
-- ARGV: 1 the letter  2 its job
-- Returns 1; or 0 when the letter has gone
allow_out_of_memory(KEYS[4])
if not redis.call('LPOS', KEYS[1], ARGV[1]) then return 0 end
-- The job is put back before the letter is removed: should the first fail, nothing is lost.
redis.call('RPUSH', KEYS[2], ARGV[2])
redis.call('LREM', KEYS[1], 1, ARGV[1])
redis.call('HDEL', KEYS[3], job_id(ARGV[2]))
if redis.call('HGET', KEYS[5], 'status') == 'failed' then  -- the one way back from a status that is final
  redis.call('HSET', KEYS[5], 'status', 'queued')
  redis.call('HDEL', KEYS[5], 'error', 'deadline')  -- the job has lost its deadline
  redis.call('UNLINK', KEYS[6], KEYS[7])
end
return 1
