-- Where the feed begins and ends.
select start, cut, greatest(last, coalesce((select seq from done order by seq desc limit 1), 0)) as head,
       (select finished from done where seq > feed.start order by seq limit 1) as oldest
from feed
