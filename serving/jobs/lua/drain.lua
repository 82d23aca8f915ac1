-- Drain the queue: no job is accepted any more, and model servers take what waits, so that a pause ends.
-- KEYS: 1 leases  2 draining  3 paused
-- Returns 1; or 0 when it drained already and was not paused
allow_out_of_memory(KEYS[1])
local is_new = redis.call('SET', KEYS[2], string.format('%.6f', now()), 'NX')
local was_paused = redis.call('UNLINK', KEYS[3]) == 1
return (is_new or was_paused) and 1 or 0
