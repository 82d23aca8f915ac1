-- Give a model server's jobs back to the head of the queue, in their order and with no attempt counted, and end its
-- lease.
-- KEYS: 1 queue  2 processing list  3 leases  4 settled_by_server  5 serves
-- ARGV: 1 model server  2 whether to forget its name: 1, or 0 when one of its commands may still be under way
-- Returns how many jobs went back
allow_out_of_memory(KEYS[3])
local returned = 0
while redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT') do
  returned = returned + 1
end
redis.call('HDEL', KEYS[4], ARGV[1])
redis.call('HDEL', KEYS[5], ARGV[1])
if ARGV[2] == '1' then
  redis.call('ZREM', KEYS[3], ARGV[1])
else
  redis.call('ZADD', KEYS[3], now(), ARGV[1])
end
return returned
