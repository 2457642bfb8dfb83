-- The rules of the ledger once more, function by function as in accounting.py, because a step in Redis must be atomic;
-- tests/ledger/test_accounting_lua.py runs one table of cases through both. What is None there is nil here. Periods and
-- the times of uses are the texts of entries.py, which compare like what they stand for. Numbers are exact up to 2^53.
-- Where a function there makes a new row, the row that is given is changed here.

-- A period's start and end; empty for an end that was not told.
local function ends_of(period) return string.match(period, '^(%d*)/(%d*)$') end

local function ended_before(period, other)
    local _, ended = ends_of(period)
    local start = ends_of(other)
    return ended ~= '' and start ~= '' and ended <= start
end

local function period_holds(period, instant)
    local start, ended = ends_of(period)
    return (start == '' or start <= instant) and (ended == '' or instant < ended)
end

local function period_surely_holds(period, instant)
    local start, ended = ends_of(period)
    return period_holds(period, instant) and (start == '') == (ended == '')
end

-- Microseconds of the ledger's clock as the time of a use.
local function instant_text(instant)
    local seconds = math.floor(instant / 1000000)
    return string.format('%013.0f%06.0f000', 1000000000000 + seconds, instant - seconds * 1000000)
end

-- The nanoseconds between two times, exact as long as they lie within a hundred days.
local function apart(one, other)
    local seconds = tonumber(string.sub(one, 1, 13)) - tonumber(string.sub(other, 1, 13))
    return math.abs(seconds * 1000000000 + tonumber(string.sub(one, 14)) - tonumber(string.sub(other, 14)))
end

local function earlier(one, other) return other < one and other or one end

local function later(one, other) return one < other and other or one end

local function lower(one, other) return one and other and math.min(one, other) or one or other end

local function stamped(period, read)
    return later(read, (ends_of(period)))
end

local function sent_at(period, used_at, read)
    return stamped(period, earlier(used_at, read))
end

local function not_ahead(row, now)
    row.settled_at = row.settled_at and math.min(row.settled_at, now)
    row.moved_at = row.moved_at and math.min(row.moved_at, now)
end

-- The row, and the limit to decide by.
local function believed(row, news, now, grace)
    if not row then
        return {period = news.period, used = news.used, limit = news.limit, seen = news.ticket, settled = 0, added = 0},
            news.limit
    end
    if news.ticket <= row.seen then return row, lower(row.limit, news.limit) end
    not_ahead(row, now)
    local asked_at = news.asked_at <= now and news.asked_at or 0
    local may_lower = news.ticket > row.settled and (not row.settled_at or asked_at >= row.settled_at + grace)
    local told = may_lower and news.used or news.used + row.added
    local has_just_moved = row.moved_at and asked_at < row.moved_at + grace
    local limit = lower(row.limit, news.limit)
    if news.period == row.period then
        local settled_at = row.settled_at or 0
        local is_older = 0 < asked_at and asked_at < settled_at and settled_at >= (row.moved_at or 0)
        row.used = may_lower and news.used or math.max(row.used, row.seen ~= 0 and news.used or told)
        if limit ~= row.limit then row.moved_at = now end
        row.limit = news.limit
        if has_just_moved then row.limit = limit end
        local added = row.used - news.used
        row.seen, row.added = news.ticket, is_older and math.min(added, row.added) or added
    elseif has_just_moved then
        local used = math.max(row.used, told)
        row.limit, row.seen, row.added, row.settled_at = limit, news.ticket, row.added + used - row.used, now
        row.used = used
    else
        row.period, row.used, row.limit, row.seen = news.period, told, news.limit, news.ticket
        row.added, row.moved_at = told - news.used, now
    end
    return row, row.limit
end

local function counts(pending, period)
    local start = ends_of(period)
    local was_before = start ~= '' and pending.used_at < start
    return not (was_before and ended_before(pending.period, period))
end

-- What is on its way is kept as its sum: `more` units, and the highest new `total`.
local function summed(sum, pending, period)
    if not counts(pending, period) then return sum end
    if pending.is_set then return {more = sum.more, total = math.max(sum.total, pending.amount)} end
    return {more = sum.more + math.max(pending.amount, 0), total = sum.total}
end

local function counted(row, held, on_its_way)
    return math.max(row.used, on_its_way.total) + held + on_its_way.more
end

local function outstanding(held, on_its_way)
    return counted({used = 0}, held, on_its_way)
end

local function cost(amount, rate) return math.ceil(amount * rate - 1e-6) end

local function priced(report, rate)
    return {
        period = report.period, used_at = report.used_at, ticket = report.ticket, is_set = false,
        amount = cost(math.max(report.amount, 0), rate),
    }
end

local function is_free(counted_so_far, amount, limit)
    return not limit or counted_so_far + amount <= limit
end

local function is_perhaps_free(row, counted_so_far, amount, limit, sending)
    local is_twice = false
    for _, one in ipairs(sending) do
        if one.ticket < row.seen and not one.is_set and counts(one, row.period) then
            is_twice, counted_so_far = true, counted_so_far - math.max(one.amount, 0)
        end
    end
    return is_twice and is_free(counted_so_far, amount, limit)
end

-- The text of entries.py for what was known before a report.
local function before_text(row)
    local moved_at = row.moved_at and string.format('%.0f', row.moved_at) or ''
    return string.format('%.0f %s %s', row.used, moved_at, row.period)
end

local function taken(row, ticket, is_alone)
    local before = row.added == 0 and is_alone and before_text(row) or ''
    row.settled = ticket
    return row, before
end

local function learned(row, pending, told, period, ticket, now)
    row = row or {period = period, used = 0, seen = 0, settled = 0, added = 0}
    local is_newest = math.max(row.seen, row.settled) <= pending.ticket
    local with_it = row.used
    if not told or counts(pending, row.period) then
        with_it = pending.is_set and pending.amount or math.max(0, row.used + pending.amount)
        local is_here = period == row.period or period == '/' and period_surely_holds(row.period, pending.used_at)
        if not (is_newest and is_here) then with_it = math.max(row.used, with_it) end
    end
    if not told or period ~= row.period then
        row.added = row.added + math.max(with_it - row.used, 0)
        row.used, row.settled, row.settled_at = with_it, ticket, now
        return row
    end
    local used
    if row.added ~= 0 or not period_surely_holds(period, pending.used_at) then
        used = math.max(told, with_it)
    else
        used = is_newest and told or math.max(told, row.used)
    end
    row.used, row.added, row.settled, row.settled_at = used, used - told, ticket, now
    return row
end

local function may_add_up(first, second, present)
    if first.ticket ~= 0 or second.ticket ~= 0 or first.dimensions ~= second.dimensions then return false end
    if counts(first, present) ~= counts(second, present) then return false end
    local is_plain = not first.is_set and not second.is_set and (first.amount > 0) == (second.amount > 0)
    local same_side = period_holds(first.period, first.used_at) == period_holds(second.period, second.used_at)
    local is_close = apart(first.used_at, second.used_at) <= ADDED_UP_WITHIN
    return is_plain and same_side and is_close and first.period == second.period
end

-- `until` is a word of Lua.
local function until_(told, lasts, now) return math.min(told, now + lasts) end

-- A mark has the fields `hold`, `ends` and `binding`.
local function key_state(mark, binding, now)
    if not mark or mark.ends <= now then return 'free' end
    if mark.binding ~= binding then return 'bound' end
    return mark.hold == '' and 'counted' or 'held'
end

local function is_counted(mark, now)
    return mark ~= nil and mark.hold == '' and now < mark.ends
end
