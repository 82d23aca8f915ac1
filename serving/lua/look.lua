-- What submit tells of the queue, without submitting.
-- KEYS: 1 queue  2 served
-- Returns {jobs that wait, jobs served so far, Redis's clock in seconds, as text}
return {redis.call('LLEN', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '0'), string.format('%.6f', now())}
