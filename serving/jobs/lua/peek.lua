-- Tell of the first jobs of a lane. Of a job, 200 kB as a rule, only what stands before its image leaves Redis.
-- KEYS: 1 waiting  2 attempts
-- ARGV: 1 most jobs  2 how many bytes of a job may come before its image
-- Returns {Redis's clock in unix seconds, as text, jobs that wait, {for each job: its size in bytes, what stands before
-- its image or '' when no image begins within so many bytes, how often the job came back}}
local told = {}
for i = 1, math.min(tonumber(ARGV[1]), redis.call('LLEN', KEYS[1])) do
  local job = redis.call('LINDEX', KEYS[1], i - 1)
  local id = string.match(job, '^{"id": ?"([%w-]+)"')
  local beginning = string.sub(job, 1, tonumber(ARGV[2]))
  local image = string.find(beginning, '"image"', 1, true) or 1
  told[#told + 1] = #job
  told[#told + 1] = string.sub(beginning, 1, image - 1)
  told[#told + 1] = tonumber(id and redis.call('HGET', KEYS[2], id) or '0') or 0
end
return {string.format('%.6f', now()), redis.call('LLEN', KEYS[1]), told}
