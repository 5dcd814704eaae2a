-- What the server is, and what its settings promise.
select current_setting('server_version_num')::int4 / 10000 as version,
       current_setting('server_encoding') as encoding,
       current_schema()::text as schema,
       current_setting('fsync')::bool and current_setting('full_page_writes')::bool as is_safe,
       current_setting('synchronous_commit') <> 'off' as is_synchronous,
       current_setting('synchronous_standby_names') <> '' and current_setting('synchronous_commit') in ('on', 'remote_apply')
         as has_standby
