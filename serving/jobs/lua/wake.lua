-- Have a model server that is quiet take again.
-- KEYS: 1 leases  2 quiet
-- ARGV: 1 model server
-- Returns a state:
--   1  DONE
--   0  WAS_SO: it is not quiet
--  -1  UNKNOWN: no model server of this name lives, nor is one quiet that died a while ago
local DONE, WAS_SO, UNKNOWN = 1, 0, -1
if redis.call('HDEL', KEYS[2], ARGV[1]) == 1 then return DONE end
return lease_end(KEYS[1], ARGV[1]) > now() and WAS_SO or UNKNOWN
