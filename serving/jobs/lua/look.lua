-- What submit tells of the queue, without submitting.
-- KEYS: 1 queue  2 served  3 emptied
-- Returns {jobs that wait, jobs served so far, and in seconds, as text: when the queue was last emptied, Redis's clock}
return {redis.call('LLEN', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '0'), redis.call('GET', KEYS[3]) or '0',
  string.format('%.6f', now())}
