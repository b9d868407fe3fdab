# Macros of godwit's configure.ac. They exist so that configure needs autoconf, automake and pkg-config's pkg.m4 alone
# (no autoconf-archive), and so that everything a site lacks is named in one list instead of one run of configure each.
#
#   GW_MISSING       shell variable, one line per missing thing; GW_REPORT_MISSING ends configure if it is not empty
#   GW_NOT_FOUND     adds a line to it

# GW_CHECK_CFLAG(FLAGS, [IF-ACCEPTED], [IF-REFUSED])
# Does $CC take FLAGS without so much as a warning?
AC_DEFUN([GW_CHECK_CFLAG],
[AS_VAR_PUSHDEF([gw_var], [gw_cv_cflag_$1])dnl
AC_CACHE_CHECK([whether $CC accepts $1], [gw_var],
  [gw_save_CFLAGS=$CFLAGS
   CFLAGS="$CFLAGS -Werror $1"
   AC_COMPILE_IFELSE([AC_LANG_PROGRAM([], [])], [AS_VAR_SET([gw_var], [yes])], [AS_VAR_SET([gw_var], [no])])
   CFLAGS=$gw_save_CFLAGS])
AS_VAR_IF([gw_var], [yes], [m4_default([$2], [:])], [m4_default([$3], [:])])
AS_VAR_POPDEF([gw_var])dnl
])

# GW_NOT_FOUND(NAME, DEBIAN, SPACK, MODULE)
AC_DEFUN([GW_NOT_FOUND],
[GW_MISSING="$GW_MISSING
  m4_format([%-16s Debian: %-28s Spack: %-16s module: %s], [$1], [$2], [$3], [$4])"])

# GW_REPORT_MISSING
AC_DEFUN([GW_REPORT_MISSING],
[AS_IF([test -n "$GW_MISSING" && test "$have_cunit" = no],
  [GW_NOT_FOUND([cunit (make check)], [libcunit1-dev], [cunit], [CUnit])])
AS_IF([test -n "$GW_MISSING"], [AC_MSG_ERROR([these are missing (or too old):
$GW_MISSING

  Debian 12, as root:  ./jobs/setup.sh   installs all of them
  elsewhere:           docs/install.md   has the commands for Spack and for environment modules
  Libraries in unusual places: set PKG_CONFIG_PATH, or CPPFLAGS and LDFLAGS. config.log holds the details.])])])

# GW_NEED(VAR, PKG-CONFIG-SPEC, HEADER, FUNCTION, LIBS, DEBIAN, SPACK, MODULE, [PREAMBLE])
# Sets VAR_CFLAGS and VAR_LIBS from pkg-config, or from CPPFLAGS, LDFLAGS and LIBS alone where no .pc file is found.
AC_DEFUN([GW_NEED],
[PKG_CHECK_MODULES([$1], [$2], [],
  [AC_MSG_CHECKING([for $4 in $5 without pkg-config])
   gw_save_LIBS=$LIBS
   LIBS="$5 $LIBS"
   AC_LINK_IFELSE([AC_LANG_PROGRAM([[$9
#include <$3>]], [[return ((void *)$4) == 0;]])],
     [AC_MSG_RESULT([yes])
      $1[]_CFLAGS=
      $1[]_LIBS="$5"],
     [AC_MSG_RESULT([no])
      GW_NOT_FOUND([$3], [$6], [$7], [$8])])
   LIBS=$gw_save_LIBS])])

# GW_PROG_MPICC
# Finds the wrapper: --with-mpicc, else $MPICC, else mpicc on PATH. Sets MPICC_PATH (empty when there is none), and takes
# from it MPI_CFLAGS and MPI_LIBS, so that godwit is compiled by plain $CC: any gcc or clang, sanitizers included.
AC_DEFUN([GW_PROG_MPICC],
[AC_ARG_VAR([MPICC], [MPI C compiler wrapper; godwit asks it for its flags])
AC_ARG_WITH([mpicc], [AS_HELP_STRING([--with-mpicc=PROGRAM], [MPI C compiler wrapper (default: $MPICC, then mpicc on PATH)])],
  [MPICC=$withval], [])
AS_CASE(["$MPICC"], [yes|no], [AC_MSG_ERROR([--with-mpicc takes the wrapper's name or path, e.g. --with-mpicc=/opt/openmpi/bin/mpicc])])
AC_MSG_CHECKING([for the MPI compiler wrapper])
MPICC_PATH=`command -v "${MPICC:-mpicc}" 2>/dev/null`
AC_MSG_RESULT([${MPICC_PATH:-none}])
AC_SUBST([MPICC_PATH])
AS_IF([test -z "$MPICC_PATH" && test -n "$MPICC"], [AC_MSG_ERROR([there is no program '$MPICC' (given as MPICC or --with-mpicc)])])
MPI_CFLAGS=
MPI_LIBS=
gw_mpi_version=none
AS_IF([test -n "$MPICC_PATH"],
  [AS_IF([MPI_CFLAGS=`"$MPICC_PATH" --showme:compile 2>/dev/null`],
    [MPI_LIBS=`"$MPICC_PATH" --showme:link 2>/dev/null`
     gw_mpi_version=`"$MPICC_PATH" --showme:version 2>/dev/null | sed -n '1{s/^[[^:]]*: *//;s/ *(.*//;p;}'`],
    [MPI_CFLAGS=
     for gw_word in `"$MPICC_PATH" -show 2>/dev/null`; do
       AS_CASE([$gw_word],
         [-I*|-D*|-pthread], [MPI_CFLAGS="$MPI_CFLAGS $gw_word"],
         [-L*|-l*|-Wl,*], [MPI_LIBS="$MPI_LIBS $gw_word"])
     done
     gw_mpi_version="not Open MPI"])])
AC_SUBST([MPI_CFLAGS])
AC_SUBST([MPI_LIBS])])

# GW_CC_BEHIND_MPICC
# With no CC from the user, prefers the compiler the MPI library was built for, if it is here. Call before AC_PROG_CC.
AC_DEFUN([GW_CC_BEHIND_MPICC],
[AS_IF([test -z "$CC" && test -n "$MPICC_PATH"],
  [gw_cc=`"$MPICC_PATH" --showme:command 2>/dev/null | sed 's/ .*//'`
   AS_CASE(["$gw_cc"], [''|cc], [gw_cc=gcc])
   AS_IF([command -v "$gw_cc" >/dev/null 2>&1], [CC=$gw_cc])])])

# GW_CHECK_ULFM
# Is the MPI behind MPI_CFLAGS and MPI_LIBS an Open MPI with the fault tolerance extension? Sets gw_cv_ulfm.
AC_DEFUN([GW_CHECK_ULFM],
[AC_CACHE_CHECK([for ULFM (MPIX_Comm_shrink) in <mpi-ext.h>], [gw_cv_ulfm],
  [gw_save_CFLAGS=$CFLAGS
   gw_save_LIBS=$LIBS
   CFLAGS="$CFLAGS $MPI_CFLAGS"
   LIBS="$MPI_LIBS $LIBS"
   AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <mpi.h>
#include <mpi-ext.h>
#if !defined(OMPI_HAVE_MPI_EXT_FTMPI) || !OMPI_HAVE_MPI_EXT_FTMPI
#error no ULFM
#endif]], [[MPI_Comm c; return MPIX_Comm_shrink(MPI_COMM_WORLD, &c);]])], [gw_cv_ulfm=yes], [gw_cv_ulfm=no])
   CFLAGS=$gw_save_CFLAGS
   LIBS=$gw_save_LIBS])])

# GW_CHECK_HDF5
# --with-hdf5=DIR, else pkg-config, else h5cc. Sets HDF5_CFLAGS, HDF5_LIBS, gw_hdf5_how.
# A parallel HDF5 includes <mpi.h>, so the test is made with the MPI flags.
AC_DEFUN([GW_CHECK_HDF5],
[AC_ARG_WITH([hdf5], [AS_HELP_STRING([--with-hdf5=DIR], [HDF5 under DIR (default: pkg-config, then h5cc)])], [], [with_hdf5=yes])
AC_ARG_VAR([H5CC], [HDF5's compiler wrapper, asked where pkg-config does not know HDF5])
gw_hdf5_how=none
AS_CASE([$with_hdf5],
  [yes], [PKG_CHECK_MODULES([HDF5], [hdf5], [gw_hdf5_how=pkg-config],
      [PKG_CHECK_MODULES([HDF5], [hdf5-serial], [gw_hdf5_how=pkg-config],
        [AC_PATH_PROGS([H5CC], [h5cc h5pcc])
         AS_IF([test -n "$H5CC"],
           [gw_hdf5_how=$H5CC
            HDF5_CFLAGS= HDF5_LIBS=
            for gw_word in `"$H5CC" -show 2>/dev/null`; do
              AS_CASE([$gw_word],
                [-I*], [HDF5_CFLAGS="$HDF5_CFLAGS $gw_word"],
                [-L*], [HDF5_LIBS="$HDF5_LIBS $gw_word -Wl,-rpath,`expr "$gw_word" : '-L\(.*\)'`"],
                [*/libhdf5.a], [HDF5_LIBS="$HDF5_LIBS -L`AS_DIRNAME(["$gw_word"])`"])
            done
            HDF5_LIBS="$HDF5_LIBS -lhdf5"],
           [gw_hdf5_how=CPPFLAGS
            HDF5_CFLAGS= HDF5_LIBS=-lhdf5])])])],
  [no], [AC_MSG_ERROR([godwit needs HDF5: --without-hdf5 is not possible])],
  [AS_IF([test ! -f "$with_hdf5/include/hdf5.h"], [AC_MSG_ERROR([--with-hdf5: there is no $with_hdf5/include/hdf5.h])])
   gw_hdf5_how=$with_hdf5
   HDF5_CFLAGS="-I$with_hdf5/include"
   gw_hdf5_lib=$with_hdf5/lib
   AS_IF([test -d "$with_hdf5/lib64"], [gw_hdf5_lib=$with_hdf5/lib64])
   HDF5_LIBS="-L$gw_hdf5_lib -Wl,-rpath,$gw_hdf5_lib -lhdf5"])
AC_CACHE_CHECK([whether HDF5 links], [gw_cv_hdf5],
  [gw_save_CFLAGS=$CFLAGS
   gw_save_LIBS=$LIBS
   CFLAGS="$CFLAGS $HDF5_CFLAGS $MPI_CFLAGS"
   LIBS="$HDF5_LIBS $MPI_LIBS $LIBS"
   AC_LINK_IFELSE([AC_LANG_PROGRAM([[#include <hdf5.h>
#if H5_VERS_MAJOR == 1 && H5_VERS_MINOR < 10
#error HDF5 1.10 or newer is needed
#endif]], [[return H5open() < 0;]])], [gw_cv_hdf5=yes], [gw_cv_hdf5=no])
   CFLAGS=$gw_save_CFLAGS
   LIBS=$gw_save_LIBS])
AS_IF([test $gw_cv_hdf5 = no], [GW_NOT_FOUND([hdf5.h >= 1.10], [libhdf5-dev], [hdf5], [HDF5])])
AC_SUBST([HDF5_CFLAGS])
AC_SUBST([HDF5_LIBS])])

# GW_CHECK_CURL
# libcurl asks the metadata services of clouds for notices; nothing else needs it. --with-curl makes it required, --without-curl leaves it out.
# Sets CURL_CFLAGS, CURL_LIBS, gw_curl_how; defines HAVE_LIBCURL.
AC_DEFUN([GW_CHECK_CURL],
[AC_ARG_WITH([curl], [AS_HELP_STRING([--without-curl], [no notices from AWS, Azure and Google Cloud (default: with libcurl >= 7.68, if it is here)])],
  [], [with_curl=auto])
gw_curl_how="left out (--without-curl)"
AS_IF([test "x$with_curl" != xno],
  [PKG_CHECK_MODULES([CURL], [libcurl >= 7.68],
    [gw_curl_how=found
     AC_DEFINE([HAVE_LIBCURL], [1], [metadata services of clouds can be asked])],
    [gw_curl_how="not found: no notices from AWS, Azure and Google Cloud (Debian: libcurl4-openssl-dev)"
     AS_IF([test "x$with_curl" = xyes], [GW_NOT_FOUND([libcurl >= 7.68], [libcurl4-openssl-dev], [curl], [cURL])])])])
AC_SUBST([CURL_CFLAGS])
AC_SUBST([CURL_LIBS])])

# GW_REFUSE_FAST_MATH
# Output digests are equal everywhere only while the compiler keeps to IEEE arithmetic.
AC_DEFUN([GW_REFUSE_FAST_MATH],
[AC_MSG_CHECKING([that CFLAGS keep IEEE arithmetic])
AC_COMPILE_IFELSE([AC_LANG_PROGRAM([[#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error fast math
#endif]], [])],
  [AC_MSG_RESULT([yes])],
  [AC_MSG_RESULT([no])
   AC_MSG_ERROR([CFLAGS='$CFLAGS' turn on fast math (-ffast-math, -Ofast), which changes results. godwit promises the
  same bits on every layout and host: leave those flags out.])])])
