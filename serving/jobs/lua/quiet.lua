-- Have a model server take no more.
-- KEYS: 1 leases  2 quiet
-- ARGV: 1 model server
-- Returns a state:
--   1  DONE
--   0  WAS_SO: it is quiet already
--  -1  UNKNOWN: no model server of this name lives
local DONE, WAS_SO, UNKNOWN = 1, 0, -1
allow_out_of_memory(KEYS[1])
local clock = now()
if lease_end(KEYS[1], ARGV[1]) <= clock then return UNKNOWN end
-- Model servers of earlier releases forget the name of a dead one, and leave it here.
for _, server in ipairs(redis.pcall('HKEYS', KEYS[2])) do
  if lease_end(KEYS[1], server) == 0 then redis.call('HDEL', KEYS[2], server) end
end
if redis.call('HGET', KEYS[2], ARGV[1]) then return WAS_SO end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%.6f', clock))
return DONE
