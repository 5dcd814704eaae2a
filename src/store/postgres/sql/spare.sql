-- Lets these leases go on at least until then.
update lease set until = $2 where num = any ($1::int8[]) and until < $2
