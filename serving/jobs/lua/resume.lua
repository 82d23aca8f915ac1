-- End a pause and a drain.
-- KEYS: 1 leases  2 paused  3 last_empty_at  4 draining
-- Returns 1; or 0 when there was neither
allow_out_of_memory(KEYS[1])
local was_paused, was_draining = end_pause(KEYS[2], KEYS[3]), redis.call('UNLINK', KEYS[4]) == 1
return (was_paused or was_draining) and 1 or 0
