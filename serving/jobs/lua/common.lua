-- Put in front of every script of this folder.

-- Seconds by Redis's clock: the only clock that leases and deadlines know.
local function now()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end

local function lease_end(leases, server)
  return tonumber(redis.call('ZSCORE', leases, server) or '0')
end

-- Whether a model server's lease ran out. A name that is not even known (somebody deleted the set) becomes known
-- again, as one that ran out: else nobody would look after its list.
local function lost(processing, leases, server, clock)
  local ends = lease_end(leases, server)
  if ends == 0 and redis.call('LLEN', processing) > 0 then redis.call('ZADD', leases, clock, server) end
  return ends <= clock
end

-- The id under which a job's attempts are counted. Decoding 270 kB of JSON is what the pattern saves;
-- what is no job at all is counted too, by its digest, since it may be what kills the model servers.
local function job_id(text)
  local id = string.match(text, '^{"id": ?"([%w-]+)"')
  if id then return id end
  local decoded, job = pcall(cjson.decode, text)
  if decoded and type(job) == 'table' and type(job.id) == 'string' then return job.id end
  return redis.sha1hex(text)
end

-- A Redis out of memory refuses a script whose first write may take memory. Scripts that move and end jobs free more
-- than they take, and must run just then: they begin with a write that takes none.
local function allow_out_of_memory(leases)
  redis.call('ZREM', leases, '')
end
