-- What the role may not do with the tables of jobwire: those of the owner of the table `jobwire`, beside it.
select current_user::text as role, string_agg(asked, ', ') || ' on ' || relname as missing
from pg_class c, unnest(case relkind
    when 'S' then array['usage', 'select', 'update'] when 'v' then array['select']
    else array['select', 'insert', 'update', 'delete'] end) asked
where (relnamespace, relowner) = (select relnamespace, relowner from pg_class where oid = 'jobwire'::regclass)
  and relkind in ('r', 'p', 'v', 'S') and relname <> 'jobwire'
  and not case relkind when 'S' then has_sequence_privilege(oid, asked) else has_table_privilege(oid, asked) end
group by relname order by relname
