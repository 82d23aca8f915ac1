-- Tell of the queue what submit tells, without submitting.
-- KEYS: 1 waiting jobs  2 settled_total  3 last_empty_at  4 draining  5 paused
-- Returns {Redis's clock in unix seconds, as text, jobs that wait, jobs settled so far, when the queue was last empty,
-- likewise, 1 if it drains else 0, 1 if it is paused else 0}
return {string.format('%.6f', now()), redis.call('LLEN', KEYS[1]), tonumber(redis.call('GET', KEYS[2]) or '0'),
  redis.call('GET', KEYS[3]) or '0', redis.call('GET', KEYS[4]) and 1 or 0, redis.call('GET', KEYS[5]) and 1 or 0}
