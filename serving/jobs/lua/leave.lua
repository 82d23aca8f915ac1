-- Give a model server's jobs back to the heads of their lanes, in their order and with no attempt counted, and end its
-- lease.
-- KEYS: 1 leases  2 serves, and of each lane: 3, 6 waiting jobs  4, 7 processing list  5, 8 settled_by_server
--       9 quiet
-- ARGV: 1 model server  2 whether to forget its name: 1, or 0 when one of its commands may still be under way
--       3 how the keys of asynchronous jobs begin
-- Returns how many jobs went back
allow_out_of_memory(KEYS[1])
local returned = 0
for lane = 3, 6, 3 do
  local text = redis.call('LMOVE', KEYS[lane + 1], KEYS[lane], 'RIGHT', 'LEFT')
  while text do
    returned = returned + 1
    if lane == 6 then set_status(ARGV[3] .. job_id(text), 'queued') end
    text = redis.call('LMOVE', KEYS[lane + 1], KEYS[lane], 'RIGHT', 'LEFT')
  end
  redis.call('HDEL', KEYS[lane + 2], ARGV[1])
end
redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[2] == '1' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[9], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now(), ARGV[1])
end
return returned
