-- Return the jobs of a model server whose lease ran out to the head of the queue, in their order, each with one more
-- attempt; a job out of attempts becomes a dead letter.
-- KEYS: 1 queue  2 processing list  3 leases  4 attempts  5 dead  6 settled_by_server  7 serves
-- ARGV: 1 model server  2 most attempts  3 most dead letters  4 most bytes of a job kept in one
--       5 seconds until the name is forgotten  6 seconds until attempts that nobody clears are forgotten
-- Returns {jobs returned, job given up, …}
allow_out_of_memory(KEYS[3])
local clock = now()
local ran_out = lease_end(KEYS[3], ARGV[1])
if ran_out == 0 or ran_out > clock then return {0} end

local returned, given_up = 0, {}
local text = redis.call('LINDEX', KEYS[2], -1)
while text do
  local id = job_id(text)
  local attempts = redis.call('HINCRBY', KEYS[4], id, 1)
  redis.call('EXPIRE', KEYS[4], ARGV[6])
  if attempts < tonumber(ARGV[2]) then
    redis.call('LMOVE', KEYS[2], KEYS[1], 'RIGHT', 'LEFT')
    returned = returned + 1
  else
    -- The letter is written before the job is removed: should the first fail, nothing is lost.
    redis.call('RPUSH', KEYS[5], cjson.encode({
      id = id, at = clock, attempts = attempts, job = string.sub(text, 1, tonumber(ARGV[4])),
      reason = 'its model server died or hung ' .. attempts .. ' times, last ' .. ARGV[1]}))
    redis.call('RPOP', KEYS[2])
    redis.call('HDEL', KEYS[4], id)
    given_up[#given_up + 1] = text
  end
  text = redis.call('LINDEX', KEYS[2], -1)
end
redis.call('LTRIM', KEYS[5], -tonumber(ARGV[3]), -1)
redis.call('HDEL', KEYS[6], ARGV[1])
redis.call('HDEL', KEYS[7], ARGV[1])

-- The name outlives its lease, because a BLMOVE of the model server's last moments may still move a job to this list.
if returned + #given_up == 0 and ran_out <= clock - ARGV[5] then redis.call('ZREM', KEYS[3], ARGV[1]) end
return {returned, unpack(given_up)}
