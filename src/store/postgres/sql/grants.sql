-- What the role may not do with what is of jobwire: of the owner of the table `jobwire`, beside it. A partition is reached
-- through its table.
with own as (select relnamespace as schema, relowner as owner from pg_class where oid = 'jobwire'::regclass)
select current_user::text as role, string_agg(asked, ', ') || ' on ' || relname as missing
from pg_class c join own on (relnamespace, relowner) = (schema, owner), unnest(case relkind
    when 'S' then array['usage', 'select', 'update'] when 'v' then array['select']
    else array['select', 'insert', 'update', 'delete'] end) asked
where relkind in ('r', 'p', 'v', 'S') and not relispartition and relname <> 'jobwire'
  and not case relkind when 'S' then has_sequence_privilege(oid, asked) else has_table_privilege(oid, asked) end
group by relname
union all
select current_user::text, 'execute on ' || proname
from pg_proc join own on (pronamespace, proowner) = (schema, owner)
where not has_function_privilege(oid, 'execute')
order by missing
