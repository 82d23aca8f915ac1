-- Register a model server, whose lease begins.
-- KEYS: 1 leases  2 settled_by_server
-- ARGV: 1 model server  2 lease in seconds
-- Returns Redis's clock in unix seconds, as text
allow_out_of_memory(KEYS[1])
local clock = now()
redis.call('ZADD', KEYS[1], clock + ARGV[2], ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], 0)
return string.format('%.6f', clock)
