-- Drain the queue: no job is accepted any more, and model servers take what waits, so that a pause ends.
-- KEYS: 1 leases  2 paused  3 last_empty_at  4 draining
-- Returns 1; or 0 when it drained already and was not paused
allow_out_of_memory(KEYS[1])
local was_paused = end_pause(KEYS[2], KEYS[3])
local is_new = redis.call('SET', KEYS[4], string.format('%.6f', now()), 'NX')
return (was_paused or is_new) and 1 or 0
