-- Leases that nobody could prolong since a moment ($1), because the database did not answer, go on until another one.
with bundles as (update bundle set until = $2 where until >= $1 and until < $2)
update lease set until = $2 where until >= $1 and until < $2
