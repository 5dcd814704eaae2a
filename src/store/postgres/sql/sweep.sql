-- Removes bundles whose jobs have all ended.
delete from bundle where running = 0
