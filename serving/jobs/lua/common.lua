-- Each script of this folder has those of these functions in front of it that it calls.

-- Unix seconds by Redis's clock, the only clock by which leases and deadlines count.
local function now()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

-- When a model server's lease runs out, unix seconds; 0 when its name is not known.
local function lease_end(leases, server)
  return tonumber(redis.call('ZSCORE', leases, server) or '0')
end

-- The model servers whose lease has not run out.
local function alive(leases, clock)
  return redis.call('ZRANGEBYSCORE', leases, string.format('(%.17g', clock), '+inf')
end

-- Publish what a model server serves, JSON, and its labels, JSON; kept for so many seconds.
local function publish(serves, served_last, labels_key, server, text, labels, seconds)
  redis.call('HSET', serves, server, text)
  redis.call('EXPIRE', serves, seconds)
  redis.call('SET', served_last, text, 'EX', seconds)
  redis.call('SET', labels_key, labels, 'EX', seconds)
end

-- Whether a model server's lease ran out. When even its name is not known (somebody deleted the set), but one of its
-- two processing lists has jobs, this makes the name known again with a lease that ran out. Otherwise nobody would
-- return those jobs.
local function lost(leases, server, clock, processing, processing_of_other_lane)
  local ends = lease_end(leases, server)
  if ends == 0 and redis.call('LLEN', processing) + redis.call('LLEN', processing_of_other_lane) > 0 then
    redis.call('ZADD', leases, clock, server)
  end
  return ends <= clock
end

-- Whether an operator has told a model server to take nothing: the queue is paused, or this model server is quiet.
local function is_paused(paused, quiet, server)
  return redis.call('GET', paused) or redis.call('HGET', quiet, server)
end

-- End a pause; returns whether there was one. What waits now began to wait in the pause, or before: admission must not
-- take that time for the model servers' slowness, and begins to measure anew as if the queue had just been empty.
local function end_pause(paused, last_empty_at)
  if redis.call('UNLINK', paused) == 0 then return false end
  redis.call('SET', last_empty_at, string.format('%.6f', now()))
  return true
end

-- The id under which a job's attempts are counted. The pattern saves decoding 270 kB of JSON. A text that is no job at
-- all is counted by its digest, since it may be the one that kills the model servers.
local function job_id(text)
  local id = string.match(text, '^{"id": ?"([%w-]+)"')
  if id then return id end
  local decoded, job = pcall(cjson.decode, text)
  if decoded and type(job) == 'table' and type(job.id) == 'string' then return job.id end
  return redis.sha1hex(text)
end

-- A Redis that is out of memory refuses a script whose first write may take memory. The scripts that move and end jobs
-- free more memory than they take, and must run just then. So they begin with this write, which takes none.
local function allow_out_of_memory(leases)
  redis.call('ZREM', leases, '')
end

-- Give an asynchronous job a status, unless the job has ended: how a job ended is final, and so is a cancel.
-- Returns the status that the job has now, nil if it has no hash; and whether it ended, or not, only just now.
local ENDED = {succeeded = true, failed = true, canceled = true}
local function set_status(job, status)
  local before = redis.call('HGET', job, 'status')
  if not before then return nil, false end
  if ENDED[before] then return before, false end
  if redis.call('HGET', job, 'canceled') == '1' then status = 'canceled' end
  redis.call('HSET', job, 'status', status)
  return status, true
end

-- The beginning of the job that waits longest, so many bytes of it; '' if none waits.
local function oldest(waiting, bytes)
  return string.sub(redis.call('LINDEX', waiting, 0) or '', 1, tonumber(bytes))
end

-- How the service is doing: what look.lua returns, of its KEYS and ARGV.
local function live_view(keys, args, clock)
  local seconds, servers = {}, {}
  -- The last second that is over may still be told of.
  for second = math.floor(clock) - args[2] - 1, math.floor(clock) - 2 do
    local counts = redis.call('HGET', keys[7], second % args[1])
    if counts then seconds[#seconds + 1] = counts end
  end
  for _, server in ipairs(alive(keys[4], clock)) do
    servers[#servers + 1] = server
    servers[#servers + 1] = redis.call('HGET', keys[5], server) or ''
  end
  return {string.format('%.6f', clock), redis.call('LLEN', keys[1]), redis.call('LLEN', keys[2]),
    tonumber(redis.call('GET', keys[3]) or '0'), oldest(keys[1], args[3]), redis.call('GET', keys[6]) and 1 or 0,
    redis.call('GET', keys[8]) or '', redis.call('GET', keys[9]) or '', seconds, servers}
end

-- Take part in a flight: lead it if nobody does whose lease lives, else follow. `channel` hears of the answer. Returns 1
-- for a leader, 0 for a follower, -1 if Redis has no room to note it.
local function board(flight, id, deadline, channel, lease, clock)
  local leader = redis.call('HGET', flight, 'leader')
  local leads = leader == id or tonumber(redis.call('HGET', flight, 'until') or '0') <= clock
  local noted
  if leads then
    noted = redis.pcall('HSET', flight, 'leader', id, 'until', string.format('%.6f', clock + lease))
  else
    noted = redis.pcall('HSET', flight, id, deadline .. ' ' .. channel)
  end
  if type(noted) == 'table' and noted.err then return -1 end
  if leads then redis.call('HDEL', flight, id) end
  local seconds = math.max(1, math.ceil(deadline - clock + lease))
  if redis.call('PTTL', flight) < 1000 * seconds then redis.call('EXPIRE', flight, seconds) end
  return leads and 1 or 0
end

-- The ids of the requests that follow in a flight.
local function followers(flight)
  local ids = {}
  for _, field in ipairs(redis.call('HKEYS', flight)) do
    if field ~= 'leader' and field ~= 'until' then ids[#ids + 1] = field end
  end
  return ids
end
