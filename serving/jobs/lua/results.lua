-- Write how asynchronous jobs ended, for readers that come later. The answer of a job that is canceled, or has ended
-- already, is not written. A job without a hash (the time for its result is over) is answered like any other.
-- KEYS: 1 leases, then for each job: its hash, its answer, what travels beside the answer
-- ARGV: 1 time to live in seconds where no hash tells it, then for each job: status, answer ('': none), what travels
--       beside it, error ('': none)
allow_out_of_memory(KEYS[1])
local next_arg = 2
for i = 2, #KEYS, 3 do
  local status, answer, beside, error = unpack(ARGV, next_arg, next_arg + 3)
  next_arg = next_arg + 4
  local milliseconds = redis.pcall('PTTL', KEYS[i])  -- users that were set up for an earlier release may not ask
  if type(milliseconds) ~= 'number' or milliseconds <= 0 then milliseconds = ARGV[1] * 1000 end
  local found, is_new = set_status(KEYS[i], status)
  if is_new and found == status and error ~= '' then redis.call('HSET', KEYS[i], 'error', error) end
  if (not found or is_new and found == status) and answer ~= '' then
    redis.call('SET', KEYS[i + 1], answer, 'PX', milliseconds)
    redis.call('SET', KEYS[i + 2], beside, 'PX', milliseconds)
  end
end
