-- Goes on where a store that was taken over has ended: under its name and key, with numbers beyond all that it gave. Its
-- leases were granted by a process that is gone: the replica 0, which no other can be. Fences there were above 2^32, so
-- that those from here on are none of them.
with named as (insert into feed (log_id, lease_key, start, cut, last) values ($1, $2, $3, $4, $5::int8)),
before as (insert into replica (id, server) overriding system value select 0, since from locks)
select setval('done_seq', greatest($5::int8, 1), $5::int8 > 0),
       setval('job_num', ($6::int8 / 32 + 1) * 32, false),
       setval(pg_get_serial_sequence('line', 'id'), (select coalesce(max(id), 0) + 1 from line), false)
