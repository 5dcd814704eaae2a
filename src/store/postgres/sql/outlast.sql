-- Leases that nobody could prolong since a moment ($1), because the database did not answer, go on until another one.
update lease set until = $2 where until >= $1 and until < $2
