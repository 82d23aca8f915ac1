-- Tell how the service is doing, in one look.
-- KEYS: 1 queue  2 bulk  3 settled_total  4 leases  5 serves  6 answered_at  7 seconds  8 paused  9 draining
-- ARGV: 1 slots  2 how many seconds to tell of  3 how many bytes of a job may come before its image
-- Returns {Redis's clock in unix seconds, as text, jobs that wait, bulk jobs that wait, jobs settled so far, the beginning
-- of the job that waits longest or '', 1 if an answer came within a minute else 0, since when the queue is paused, and
-- drains, unix seconds, as text, '' if it does not, the counts of each second that has any, the model servers that live:
-- name, what it serves, JSON, or '', …}
return live_view(KEYS, ARGV, now())
