-- The epoch that the log is in, and whether the server is the one that it began on.
select f.log_id, e.first, (e.system, e.timeline) = (s.system, s.timeline) as is_here
from feed f, server s, (select first, system, timeline from epoch order by first desc limit 1) e
