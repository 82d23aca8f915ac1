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
