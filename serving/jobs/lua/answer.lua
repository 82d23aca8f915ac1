-- Answer jobs of one lane, wake their web servers, and strike the jobs off the model server's processing list; they are
-- its oldest.
-- Sent again after a reply was lost, the script does nothing that it has done already.
-- KEYS: 1 processing list  2 leases  3 attempts  4 dead  5 settled_total  6 settled_by_server
--       7 processing list of the other lane  8… job ids to answer
-- ARGV: 1 model server  2 lease in seconds  3 how many jobs to strike off  4 how many it had settled before
--       5 time to live of the answers in seconds  6 most dead letters  7 how many dead letters follow
--       8… the dead letters, an answer for each job id, then channel, message, …
-- Returns a state:
--   1  DONE: the jobs are answered, and struck off unless they had been already
--   0  LEASE_LOST: the answers count, but the list is no longer this model server's to strike off
local DONE, LEASE_LOST = 1, 0
allow_out_of_memory(KEYS[2])
local next_arg = 8 + tonumber(ARGV[7])
for i = 8, #KEYS do
  redis.call('SET', KEYS[i], ARGV[next_arg], 'EX', ARGV[5])
  next_arg = next_arg + 1
end
for i = next_arg, #ARGV, 2 do
  redis.call('PUBLISH', ARGV[i], ARGV[i + 1])
end

local clock = now()
if lost(KEYS[2], ARGV[1], clock, KEYS[1], KEYS[7]) then return LEASE_LOST end
local count = tonumber(ARGV[3])
local settled = redis.call('HGET', KEYS[6], ARGV[1])
if settled and tonumber(settled) < tonumber(ARGV[4]) then
  -- Redis forgot its last writes: nobody knows which jobs the list begins with, so they must go to others.
  redis.call('ZADD', KEYS[2], clock, ARGV[1])
  return LEASE_LOST
end
if count == 0 or settled ~= ARGV[4] then return DONE end

if redis.call('HLEN', KEYS[3]) > 0 then
  for _, text in ipairs(redis.call('LRANGE', KEYS[1], 0, count - 1)) do
    redis.call('HDEL', KEYS[3], job_id(text))
  end
end
for i = 8, 7 + tonumber(ARGV[7]) do
  redis.call('RPUSH', KEYS[4], ARGV[i])
end
redis.call('LTRIM', KEYS[4], -tonumber(ARGV[6]), -1)
redis.call('LTRIM', KEYS[1], count, -1)
redis.call('ZADD', KEYS[2], clock + ARGV[2], ARGV[1])
redis.call('INCRBY', KEYS[5], count)
redis.call('HINCRBY', KEYS[6], ARGV[1], count)
return DONE
