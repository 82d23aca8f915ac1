-- Return the jobs of a model server whose lease ran out to the heads of their lanes, in their order, each with one more
-- attempt; a job out of attempts becomes a dead letter.
-- KEYS: 1 leases  2 attempts  3 dead  4 serves, and of each lane: 5, 8 waiting jobs  6, 9 processing list
--       7, 10 settled_by_server  11 quiet
-- ARGV: 1 model server  2 most attempts  3 most dead letters  4 most bytes of a job kept in one
--       5 seconds until the name is forgotten  6 seconds until attempts that nobody clears are forgotten
--       7 how the keys of asynchronous jobs begin
-- Returns {jobs returned, {job given up of lane people, …}, {job given up of lane bulk, …}}
allow_out_of_memory(KEYS[1])
local clock = now()
local ran_out = lease_end(KEYS[1], ARGV[1])
if ran_out == 0 or ran_out > clock then return {0, {}, {}} end

local returned, given_up = 0, {people = {}, bulk = {}}
local function return_lane(lane, waiting, processing, settled_by_server)
  local text = redis.call('LINDEX', processing, -1)
  while text do
    local id = job_id(text)
    local attempts = redis.call('HINCRBY', KEYS[2], id, 1)
    redis.call('EXPIRE', KEYS[2], ARGV[6])
    if attempts < tonumber(ARGV[2]) then
      redis.call('LMOVE', processing, waiting, 'RIGHT', 'LEFT')
      if lane == 'bulk' then set_status(ARGV[7] .. id, 'queued') end
      returned = returned + 1
    else
      -- The letter is written before the job is removed: should the first fail, nothing is lost.
      redis.call('RPUSH', KEYS[3], cjson.encode({
        id = id, at = clock, attempts = attempts, job = string.sub(text, 1, tonumber(ARGV[4])),
        lane = lane == 'bulk' and lane or nil,
        reason = 'its model server died or hung ' .. attempts .. ' times, last ' .. ARGV[1]}))
      redis.call('RPOP', processing)
      redis.call('HDEL', KEYS[2], id)
      table.insert(given_up[lane], text)
    end
    text = redis.call('LINDEX', processing, -1)
  end
  redis.call('HDEL', settled_by_server, ARGV[1])
end
return_lane('people', KEYS[5], KEYS[6], KEYS[7])
return_lane('bulk', KEYS[8], KEYS[9], KEYS[10])
redis.call('LTRIM', KEYS[3], -tonumber(ARGV[3]), -1)
redis.call('HDEL', KEYS[4], ARGV[1])

-- The name outlives its lease, because a BLMOVE of the model server's last moments may still move a job to its list.
local found_none = returned + #given_up.people + #given_up.bulk == 0
if found_none and ran_out <= clock - ARGV[5] then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('HDEL', KEYS[11], ARGV[1])
end
return {returned, given_up.people, given_up.bulk}
