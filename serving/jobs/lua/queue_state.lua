-- Tell of the queue what submit tells, without submitting.
-- KEYS: 1 waiting jobs  2 settled_total  3 last_empty_at
-- Returns {jobs that wait, jobs settled so far, and in seconds, as text: when the queue was last empty, Redis's clock}
return {redis.call('LLEN', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '0'), redis.call('GET', KEYS[3]) or '0',
  string.format('%.6f', now())}
