-- Pause the queue: no model server takes any more.
-- KEYS: 1 leases  2 paused
-- Returns 1; or 0 when it was paused already
allow_out_of_memory(KEYS[1])
return redis.call('SET', KEYS[2], string.format('%.6f', now()), 'NX') and 1 or 0
